import anyio

from anyloader import KeyNotFoundError, LoaderScope, batch_loader


@batch_loader
async def author(ids: list[int]) -> dict[int, str]:
    print("batch", ids)
    return {1: "Ada"}


async def main() -> None:
    async with LoaderScope():
        optional, required = author.load(9), author.load_required(9)
        print(await optional)
        try:
            await required
        except KeyNotFoundError as exc:  # in a web application: 404
            print(exc)

        print(await author.load_many([1, 9]))
        try:
            await author.load_many_required([1, 9])
        except LookupError as exc:
            print(type(exc).__name__)


if __name__ == "__main__":
    anyio.run(main)
