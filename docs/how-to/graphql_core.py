import anyio
import graphql

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.graphql import AnyioExecutor

schema = graphql.build_schema("type Query { users: [User] } type User { name: String }")


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("fetch_names", sorted(ids))
    return [f"user {id}" for id in ids]


class User:
    def __init__(self, id: int) -> None:
        self.id = id

    async def name(self, info: graphql.GraphQLResolveInfo) -> str:
        return await fetch_names.load(self.id)


async def main() -> None:
    async with LoaderScope():
        result = await graphql.graphql(
            schema,
            "{ users { name } }",
            {"users": [User(1), User(2), User(3)]},
            executor_class=AnyioExecutor,  # not needed on asyncio
        )
    print(result.data)


if __name__ == "__main__":
    anyio.run(main, backend="trio")
