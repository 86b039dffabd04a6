"""The work on one batch, one model or one loss; nothing here knows of Ray or MLflow."""

import os

# Models and tokenizers come from local files alone. huggingface_hub reads this once, when it is first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
