"""nnU-Net's removal of components, and ours, of the same masks; `make test-nnunet` runs this."""

import numpy as np
import pytest

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed; `make test-nnunet` has it")

from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from dinounet.inference.postprocessing import apply
from dinounet.schema.labels import Labels, Region
from dinounet.schema.prediction import Postprocessing, Steps

NUMBERS = {"background": 0, "a": 1, "b": 2, "c": 7}
REGIONS = (Region("whole", (1, 2, 7), 1), Region("core", (2, 7), 2))


@pytest.mark.parametrize("shape", [(12, 30, 40), (1, 60, 70), (40, 1, 30)])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("known", [Labels(NUMBERS), Labels(NUMBERS, REGIONS)], ids=["classes", "regions"])
def test_the_same_components_are_removed(known: Labels, density: float, shape: tuple[int, ...]) -> None:
    random = np.random.RandomState(0)
    labels = random.choice([1, 2, 7], shape).astype(np.uint8) * (random.uniform(size=shape) < density)
    theirs = labels
    for numbers in known.foreground.values():
        theirs = remove_all_but_largest_component_from_segmentation(theirs, numbers if known.regions else numbers[0])
    post = Postprocessing({name: Steps(keep_largest=True) for name in known.foreground})
    ours = apply(post, labels.copy(), None, known)
    assert 0 < np.count_nonzero(ours) < np.count_nonzero(labels)
    np.testing.assert_array_equal(ours, theirs)
