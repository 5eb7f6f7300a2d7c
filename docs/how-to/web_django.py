import os
from operator import attrgetter
from typing import Any

import django
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, models
from django.http import Http404, HttpRequest, JsonResponse
from django.urls import path

from anyloader import KeyNotFoundError, batch_loader, gather

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("DATABASE", "books.sqlite3"),
        }
    },
    MIDDLEWARE=["anyloader.integrations.django.LoaderScopeMiddleware"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
)
django.setup()


class Author(models.Model):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "books"


class Book(models.Model):
    title = models.CharField(max_length=50)
    author = models.ForeignKey(Author, models.CASCADE)

    class Meta:
        app_label = "books"


# A query for many keys, by the async methods of the ORM. This one gives a mapping already.
load_author = batch_loader(Author.objects.ain_bulk)


# Or by the blocking ones: sync_to_async runs them in Django's thread.
@batch_loader(group_by=attrgetter("author_id"))
@sync_to_async
def books_of(author_ids: list[int]) -> list[Book]:
    print("books of", author_ids, flush=True)
    return list(Book.objects.filter(author__in=author_ids).order_by("title"))


async def describe(id: int) -> dict[str, Any]:
    author, books = load_author.load_required(id), books_of.load(id)
    return {"name": (await author).name, "books": [book.title for book in await books]}


async def describe_all(ids: list[int]) -> tuple[dict[str, Any], ...]:
    return await gather(*map(describe, ids))


async def show_all(request: HttpRequest) -> JsonResponse:
    ids = [id async for id in Author.objects.order_by("id").values_list("id", flat=True)]
    return JsonResponse(await describe_all(ids), safe=False)


async def show(request: HttpRequest, id: int) -> JsonResponse:
    try:
        return JsonResponse(await describe(id))
    except KeyNotFoundError:
        raise Http404 from None


def show_sync(request: HttpRequest) -> JsonResponse:
    ids = list(Author.objects.order_by("id").values_list("id", flat=True))
    return JsonResponse(async_to_sync(describe_all)(ids), safe=False)


urlpatterns = [path("", show_all), path("<int:id>", show), path("sync", show_sync)]
app = get_asgi_application()

if __name__ == "__main__":  # makes the database, as migrations do in a project
    with connection.schema_editor() as editor:
        editor.create_model(Author)
        editor.create_model(Book)
    ada, grace = Author.objects.create(name="Ada"), Author.objects.create(name="Grace")
    for title, author in ("Notes", ada), ("Compilers", grace), ("Letters", ada):
        Book.objects.create(title=title, author=author)
