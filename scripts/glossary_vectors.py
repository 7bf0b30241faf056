"""Make avyay/rag/lexical/operations.npy anew after the table beside it has changed."""

import numpy as np

from avyay.embed.registry import open_embedder
from avyay.rag.lexical import glossary

if __name__ == "__main__":
    vectors = open_embedder("minilm").embed(glossary.meanings(), kind="document")
    np.save(glossary.VECTORS, vectors.astype(np.float16), allow_pickle=False)
    print(f"{len(vectors)} vectors in {glossary.VECTORS}")
