"""Column types that differ between the two engines."""

import sqlalchemy as sa

# SQLite's INTEGER holds 63 bits, PostgreSQL's 31: for milliseconds, picodollars and sums.
BIG = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
