import anyio
from prometheus_client import CollectorRegistry, generate_latest

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.prometheus import PrometheusHook

registry = CollectorRegistry()  # without it the metrics are where `start_http_server` shows them
prometheus = PrometheusHook(registry=registry)  # one for the whole program


@batch_loader
async def fetch_users(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def main() -> None:
    async with LoaderScope(hooks=[prometheus]):
        await fetch_users.load_many([1, 2, 3])
        await fetch_users.load(1)

    for line in generate_latest(registry).decode().splitlines():
        if line.startswith(("anyloader_loads_total", "anyloader_batch_size_sum")):
            print(line)


if __name__ == "__main__":
    anyio.run(main)
