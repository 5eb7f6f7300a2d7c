from quart import Quart

from anyloader import batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware

app = Quart(__name__)
app.asgi_app = LoaderScopeMiddleware(app.asgi_app)  # type: ignore[method-assign]


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


@app.get("/")
async def show() -> list[str]:
    return await fetch_names.load_many([1, 2, 1])
