"""How hard the fuzz suite tries: some examples in the fast tier, many in the whole one, the same ones each time."""

import pytest
from hypothesis import HealthCheck, Phase, settings

# Each test multiplies these by what its examples cost.
settings.register_profile("some", max_examples=60, derandomize=True, deadline=None, database=None, print_blob=False)
settings.register_profile("many", parent=settings.get_profile("some"), max_examples=120)
for _name in ("some", "many"):
    settings.register_profile(
        _name,
        parent=settings.get_profile(_name),
        # The first example that fails is shown as it is: to shrink one that trains takes minutes.
        phases=[Phase.explicit, Phase.generate],
        # Files are written anew for each example, and what cannot be made is thrown away by design.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def pytest_configure(config: pytest.Config) -> None:
    fast = "not slow" in (config.getoption("markexpr") or "")
    settings.load_profile("some" if fast else "many")
