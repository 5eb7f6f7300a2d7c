from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.integrations.django import DjangoScope


@batch_loader
@sync_to_async
def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids, flush=True)  # in Django's thread: the ORM can be used
    return [f"user {id}" for id in ids]


async def show(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await fetch_names.load_many([1, 2, 1]), safe=False)


@async_to_sync
async def load_names(ids: list[int]) -> list[str]:
    async with LoaderScope():
        return await fetch_names.load_many(ids)


def show_sync(request: HttpRequest) -> JsonResponse:
    return JsonResponse(load_names([1, 2, 1]), safe=False)


urlpatterns = (path("", show), path("sync", show_sync))
settings.configure(ROOT_URLCONF=urlpatterns, ALLOWED_HOSTS=["*"])
app = LoaderScopeMiddleware(get_asgi_application(), make_scope=DjangoScope)
