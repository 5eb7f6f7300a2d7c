import anyio
import httpx
import stamina

from anyloader import DataLoader, split_on_error

BUSY = {429, 502, 503, 504}
answered: list[int] = []


def server(request: httpx.Request) -> httpx.Response:
    """Stands in for a service that is busy at first, and refuses all ids if one of them is bad."""
    ids = request.url.params["ids"].split(",")
    status = 503 if not answered else 422 if "13" in ids else 200
    answered.append(status)
    print(len(ids), "ids:", status)
    return httpx.Response(status, json=[{"id": int(id), "name": f"user {id}"} for id in ids])


class BadId(Exception):
    pass


def worth_trying_again(exc: Exception) -> bool:
    if isinstance(exc, httpx.HTTPStatusError):
        return exc.response.status_code in BUSY
    return isinstance(exc, (TimeoutError, httpx.TransportError))


async def main() -> None:
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(server), base_url="https://example.org"
    ) as client:

        @stamina.retry(on=worth_trying_again, attempts=3, wait_initial=0.01, wait_jitter=0)
        async def fetch_users(ids: list[int]) -> dict[int, str]:
            with anyio.fail_after(5):  # each try
                response = await client.get("/users", params={"ids": ",".join(map(str, ids))})
            if response.status_code == 422:
                raise BadId("the service refuses an id")
            response.raise_for_status()
            return {user["id"]: user["name"] for user in response.json()}

        async with DataLoader(
            split_on_error(fetch_users, on=BadId, max_calls=20), max_batch_size=50
        ) as users:
            found = await users.load_many(range(10, 18), return_exceptions=True)
            print([name if isinstance(name, str) else type(name).__name__ for name in found])


if __name__ == "__main__":
    anyio.run(main)
