import anyio

from anyloader import DataLoader, limit

calls: list[list[int]] = []  # of how many tokens their texts are


def count_tokens(text: str) -> int:
    return len(text.split())


async def call_model(texts: list[str]) -> list[int]:
    """Stands in for a model that takes 8 tokens at a time, and hangs at some text."""
    calls.append([*map(count_tokens, texts)])
    if "hang" in texts:
        await anyio.sleep_forever()
    return [len(text) for text in texts]


async def embed(texts: list[str]) -> list[int]:
    with anyio.fail_after(0.05):  # some seconds, in practice
        return await call_model(texts)


async def main() -> None:
    async with DataLoader(
        embed,
        cache="pending",
        limiter=limit(1),
        max_batch_weight=8,
        weigh=count_tokens,
    ) as loader:
        texts = [
            "a short one",
            "one of some five words",
            "hang",
            "this is alone as it has many more words",
        ]
        found = await loader.load_many(texts, return_exceptions=True)
        print([type(value).__name__ for value in found], "from", sorted(calls))
        print("afterwards:", await loader.load("hello"))


if __name__ == "__main__":
    anyio.run(main)
