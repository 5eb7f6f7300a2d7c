import anyio
from sqlalchemy import String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from anyloader import DataLoader, in_thread


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


def make_fetch_users(sessions: sessionmaker[Session]):
    def fetch_users(ids: list[int]) -> dict[int, User]:  # runs in a worker thread
        with sessions() as session:
            users = session.scalars(select(User).where(User.id.in_(ids)))
            return {user.id: user for user in users}

    return in_thread(fetch_users)


async def main() -> None:
    # One connection for all threads, as an SQLite database in memory belongs to a connection.
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    sessions = sessionmaker(engine, expire_on_commit=False)
    Base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([User(id=1, name="Ada"), User(id=2, name="Grace")])

    async with DataLoader(make_fetch_users(sessions)) as users:
        ada, grace, nobody = await users.load_many([1, 2, 3])
        print(ada.name, grace.name, nobody, users.statistics().batches)
    engine.dispose()


if __name__ == "__main__":
    anyio.run(main)
