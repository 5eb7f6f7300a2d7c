import anyio
import httpx

from anyloader import DataLoader


def server(request: httpx.Request) -> httpx.Response:
    """Stands in for a service with a bulk endpoint that takes at most 50 ids."""
    ids = request.url.params["ids"].split(",")
    assert len(ids) <= 50
    return httpx.Response(200, json=[{"id": int(id), "name": f"user {id}"} for id in ids])


async def main() -> None:
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(server), base_url="https://example.org"
    ) as client:

        async def fetch_users(ids: list[int]) -> dict[int, str]:
            response = await client.get("/users", params={"ids": ",".join(map(str, ids))})
            response.raise_for_status()
            return {user["id"]: user["name"] for user in response.json()}

        async with DataLoader(
            fetch_users,
            max_batch_size=50,  # what the endpoint takes
            limiter=anyio.CapacityLimiter(2),  # requests at the same time
            on_missing=LookupError,
        ) as users:
            names = await users.load_many(range(120))
            print(names[0], names[119], "in", users.statistics().batches, "requests")


if __name__ == "__main__":
    anyio.run(main)
