import anyio
import strawberry

from anyloader import batch_loader
from anyloader.integrations.strawberry import AnyioExecutionContext, LoaderScopeExtension


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("fetch_names", sorted(ids))
    return [f"user {id}" for id in ids]


@strawberry.type
class User:
    id: int

    @strawberry.field
    async def name(self) -> str:
        return await fetch_names.load(self.id)


@strawberry.type
class Query:
    @strawberry.field
    async def users(self) -> list[User]:
        return [User(id=1), User(id=2), User(id=3)]


schema = strawberry.Schema(
    Query,
    extensions=[LoaderScopeExtension],
    execution_context_class=AnyioExecutionContext,  # not needed on asyncio
)


async def main() -> None:
    result = await schema.execute("{ users { name } }")
    print(result.data)


if __name__ == "__main__":
    anyio.run(main, backend="trio")
