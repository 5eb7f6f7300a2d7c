import anyio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.opentelemetry import OpenTelemetryHook

exporter = InMemorySpanExporter()  # in earnest one that sends spans to a collector
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("shop")

telemetry = OpenTelemetryHook(tracer_provider=provider)  # one for the whole program


@batch_loader
async def fetch_users(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def greet(id: int) -> None:
    with tracer.start_as_current_span(f"greet {id}"):
        await fetch_users.load(id)


async def main() -> None:
    with tracer.start_as_current_span("request"):
        async with LoaderScope(hooks=[telemetry]), anyio.create_task_group() as tasks:
            tasks.start_soon(greet, 1)
            tasks.start_soon(greet, 2)

    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    for span in spans:
        if span.name == "GraphQL DataLoader Batch fetch_users":
            print("in:", names[span.parent.span_id])
            print("for:", sorted(names[link.context.span_id] for link in span.links))
            print("loads:", span.attributes["graphql.dataloader.batch.size"])


if __name__ == "__main__":
    anyio.run(main)
