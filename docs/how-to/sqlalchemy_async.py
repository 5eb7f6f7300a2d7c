import asyncio
from contextvars import ContextVar

from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from anyloader import LoaderScope, batch_loader


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


Sessions = async_sessionmaker[AsyncSession]
sessions: ContextVar[Sessions] = ContextVar("sessions")


@batch_loader
async def fetch_users(ids: list[int]) -> dict[int, User]:
    # A session of its own: batches run at the same time, and a session takes one statement at once.
    async with sessions.get()() as session:
        users = await session.scalars(select(User).where(User.id.in_(ids)))
        return {user.id: user for user in users}


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    sessions.set(async_sessionmaker(engine, expire_on_commit=False))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions.get().begin() as session:
        session.add_all([User(id=1, name="Ada"), User(id=2, name="Grace")])

    async with LoaderScope() as scope:
        ada, grace, nobody = await fetch_users.load_many([1, 2, 3])
        print(ada.name, grace.name, nobody, scope.statistics().batches)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
