"""Laws: what holds for all inputs. hypothesis looks for one for which it doesn't, in the same order in every run."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

settings.register_profile(
    "laws",
    derandomize=True,
    database=None,
    deadline=None,  # of a busy machine nothing follows
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # of the folder that examples write to, each over the last one's files
    ],
)
settings.load_profile("laws")

# what JSON holds
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(int, st.integers(-(10**12), 10**12))
