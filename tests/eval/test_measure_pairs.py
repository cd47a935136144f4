import pathlib
import runpy
import tracemalloc
import types

import numpy as np

from clip_jax.eval.cache import Cache
from clip_jax.eval.embed import Embedded
from clip_jax.eval.example_sets import open_folder
from clip_jax.eval.measure_pairs import retrieval
from clip_jax.eval.once import Embeddings
from clip_jax.eval.tasks import TASKS

sets = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "standins.py")))


def test_retrieval_holds_no_score_of_every_pair(tmp_path):
    pictures, captions = 5000, 2
    rng = np.random.default_rng(0)
    folder = sets.wds(tmp_path / "flickr8k", sets.captioned(1), kind="retrieval", shards=1)
    opened = open_folder(TASKS["flickr8k"], folder, print)

    class Known(Embeddings):
        """Embeddings of more pictures than the folder has; all of them show the same."""

        def pictures(self, source, digest):
            texts = [[f"picture {row} {n}" for n in range(captions)] for row in range(pictures)]
            return Embedded(
                images=sets.unit(rng.normal(size=(pictures, 3))).astype(np.float32),
                indices=(0,) * pictures,
                keys=tuple(map(str, range(pictures))),
                texts=tuple(map(tuple, texts)),
                labels=(None,) * pictures,
                numbers=((),) * pictures,
                skipped=(),
            )

        def texts(self, texts):
            return sets.unit(rng.normal(size=(len(texts), 3))).astype(np.float32)

    none = Cache(folder=tmp_path / "none", limit=0)
    tracemalloc.start()
    found = retrieval(opened, Known(sets.model(), none, print), print)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.arrays["image_of_text"]) == captions * pictures
    # Bytes: the matrix would have more at a single one a score, and needs eight.
    assert peak < captions * pictures**2
