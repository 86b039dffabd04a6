"""Isolation forest, refitted on every block as the published comparison does."""

import numpy as np

SAMPLE = 256
"""Rows that a tree is grown from, at most (Liu, Ting and Zhou 2008, section 4.1)."""
SEEDS = np.iinfo(np.int32).max
"""Number of seeds that scikit-learn draws from."""


def isolation_forest(image: np.ndarray, seed: int, trees: int) -> np.ndarray:
    """Return `[n] float64` anomaly scores of image vectors `[n, D] float32`; higher is more suspicious.

    Liu, Ting and Zhou 2008, 2^(-E[h(x)] / c(n)). Raw scores of different forests are not
    comparable: rank them inside the block before a cut over blocks. The result depends on the
    order of the rows.

    The trees are those of scikit-learn's IsolationForest of the same seed, draw for draw, and so are the scores. They are grown here by
    the parts of its extra trees, because its bookkeeping around each tree takes several times as long as the tree.
    """
    # a second to import, which every worker process of every other pass would pay
    from sklearn.tree._criterion import MSE
    from sklearn.tree._splitter import RandomSplitter
    from sklearn.tree._tree import DepthFirstTreeBuilder, Tree
    from sklearn.utils.random import sample_without_replacement

    rows, width = image.shape
    size = min(SAMPLE, rows)
    paths = mean_path(np.arange(size + 1))
    deepest = int(np.ceil(np.log2(max(size, 2))))
    draws = np.random.RandomState(seed)
    noise = np.asarray(draws.uniform(size=rows))[:, None]  # what the trees are told to predict: anything that differs
    draws.seed(seed)
    length = np.zeros(rows)
    one_output = np.ones(1, np.intp)
    for tree_seed in draws.randint(SEEDS, size=trees):
        draws.seed(tree_seed)
        own_seed = draws.randint(SEEDS)
        draws.seed(tree_seed)
        sample_without_replacement(width, width, random_state=draws)  # the columns: all, but drawn
        sample = np.sort(sample_without_replacement(rows, size, random_state=draws))
        draws.seed(own_seed)
        # one column a node, leaves of one row and more, no weights, no constraints
        splitter = RandomSplitter(MSE(1, size), 1, 1, 0.0, draws, None)
        tree = Tree(width, one_output, 1)
        DepthFirstTreeBuilder(splitter, 2, 1, 0.0, deepest, 0.0).build(tree, image[sample], noise[sample], None, None)
        path: np.ndarray = tree.compute_node_depths() - 1.0 + paths[tree.n_node_samples]
        length += path[tree.apply(image)]
    # a single row is as odd as any
    return np.asarray(2.0 ** -(length / (trees * paths[size])) if size > 1 else np.full(rows, 0.5), dtype=np.float64)


def mean_path(rows: np.ndarray) -> np.ndarray:
    """Return c(n), `float64`: the mean path of an unsuccessful search in a binary tree of n rows."""
    many = np.maximum(rows, 3)
    path = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, path))
