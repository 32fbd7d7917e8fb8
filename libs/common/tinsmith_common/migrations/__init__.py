"""The store's schema, as numbered steps that every service applies when it starts."""

from tinsmith_common.migrations.upgrade import alembic_config, upgrade

__all__ = ["alembic_config", "upgrade"]
