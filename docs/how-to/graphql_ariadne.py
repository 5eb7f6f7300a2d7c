import anyio
from ariadne import ObjectType, QueryType, graphql, make_executable_schema

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.graphql import AnyioExecutor

query = QueryType()
user = ObjectType("User")


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("fetch_names", sorted(ids))
    return [f"user {id}" for id in ids]


@query.field("users")
def resolve_users(root: object, info: object) -> list[int]:
    return [1, 2, 3]


@user.field("name")
async def resolve_name(id: int, info: object) -> str:
    return await fetch_names.load(id)


schema = make_executable_schema(
    "type Query { users: [User] } type User { name: String }", query, user
)


async def main() -> None:
    async with LoaderScope():
        _, result = await graphql(
            schema,
            {"query": "{ users { name } }"},
            execution_context_class=AnyioExecutor,  # not needed on asyncio
        )
    print(result)


if __name__ == "__main__":
    anyio.run(main, backend="trio")
