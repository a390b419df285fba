r"""Search for policies: a corpus of passages, its index on the disk, a server, and the tool that asks it.

    a2tgpo serve-search --corpus wiki.jsonl            # builds the index if there is none, then serves
    a2tgpo serve-search --corpus wiki.jsonl --build    # builds it, and serves nothing
    a2tgpo serve-search --corpus wiki.jsonl --index dense --encoder intfloat/e5-base-v2 \
        --query-prefix "query: " --passage-prefix "passage: " --faiss hnsw

    from a2tgpo_trl.search import SearchTool

    search = SearchTool(url="http://localhost:8000", top_k=3)
    search = SearchTool(index="wiki.jsonl.bm25")       # in this process, without a server

Either line in my_tools.py makes a tool for a recipe: `tools: ["my_tools.py:search"]`. A second one beside it needs
another name: SearchTool(..., name="search_news").

The server needs `pip install 'a2tgpo_trl[search]'`, dense search `pip install 'a2tgpo_trl[dense]'`; the index of BM25
and the tool need neither.

Corpus. A file with a JSON object in each line, as Search-R1 and FlashRAG write them, whose contents are the title in
quotes, a line break and the text: {"id": "0", "contents": "..."}; or {"id": "0", "title": "...", "text": "..."}.
Without an id, the number of the passage is one, counted from 0. Or a folder of files that end with .txt or .md, which
are cut into passages of 100 words, titled by the name of their file. Passages are read from the file when they are
found, so it must stay where it is. A line that is no passage, has no text, has the id of another or is longer than
1 MiB is an error that names it.

Index. BM25 by bm25s (Lucene's form, k1 1.5, b 0.75, the commonest English words left out, no stemming), in CORPUS.bm25
or the folder that --index-folder names. Building takes memory for the vocabulary, a number or two for each passage and
20,000 passages at a time, and room on the disk of about two and a half times the index. The scores stay on the disk;
a query maps what it reads into memory. Passages with equal scores come in the order of the corpus.
A build that is killed leaves no index, and the next begins anew; two at once wait for each other. An index of another
corpus, version or setting is refused; a copy of the corpus is the same corpus.

Dense search. `--encoder` is a folder or a name of the hub that sentence-transformers reads. Before each query and each
passage it puts `--query-prefix` and `--passage-prefix`, or the encoder's own prompts where they are not given; texts
are cut at `--max-tokens`, or where the encoder says. Vectors are scaled to length 1 and compared by inner product:

    --faiss flat    with every passage: exact
    --faiss ivf     with the passages of the nearest sixteenth of the lists (8 at least), 4 sqrt(passages) lists in all
    --faiss hnsw    along a graph of neighbours, 32 a passage: fast, and larger than flat
    --faiss pq      with codes of a byte for each 4 numbers, a sixteenth of flat; needs 256 passages or more

Passages are encoded once, 8,192 at a time. Their vectors, in 16 bits, stay in CORPUS.vectors-NAME beside the index,
NAME being of the encoder, the prefix of passages and the most tokens. A build that is killed goes on after the last
shard that is whole, and another kind of index is made without encoding again; when all are built, the folder can be
removed. The index is in CORPUS.dense-flat (-ivf, -hnsw, -pq), is built in memory, and is mapped into memory when it is
searched. An index of another encoder (other weights or pooling, wherever they lie), prefix, cut or kind is refused,
like one of another corpus. By ivf a query may find fewer passages than it asks for. `--device` says where the encoder
runs; SearchTool(index=...) runs it on the processor, since the policy has the accelerator.

`PYTHONPATH=tests/helpers python tests/benches/dense_recall.py` compares the kinds: 100,000 made-up passages of 24
words, three quarters of which belong to one subject among 2,000; 1,000 queries, each of six words of a passage; an
encoder of 384 numbers (MiniLM). Recall is the share of flat's best three that a kind finds. With one thread
(OMP_NUM_THREADS=1), on 2 cores of an Intel Xeon that others used as well (2026-11-29):

    kind   recall   index       built in   memory to build   a query
    flat   1.000    146.5 MiB      1.1 s   282 MiB           28.9 ms
    ivf    0.724    149.1 MiB     18.5 s   332 MiB            2.2 ms
    hnsw   0.968    172.4 MiB    256.4 s   326 MiB            2.7 ms
    pq     0.778      9.5 MiB     22.7 s   270 MiB            7.2 ms

The memory to build includes the index. Encoding the passages, once for all kinds, took 14 minutes.

Protocol. POST /retrieve takes and gives what Search-R1's retrieval server does, so that clients and servers of that
family can be exchanged:

    {"queries": ["who is the mayor of Velm"], "topk": 3, "return_scores": true}
    {"result": [[{"document": {"id": "0", "title": "Velm", "contents": "..."}, "score": 2.7}, ...]]}

Without return_scores the lists hold the documents themselves; topk is 3 where it is not given. A query has 1 to 10,000
characters, a request up to 4,096 queries and 16 MiB, an answer up to 100,000 passages; topk is at most the number of
passages. What is beyond gets a code of 4xx and {"error": REASON}, and 503 says that --most-waiting requests wait
already. GET /healthz says that it is up, GET /metrics counts requests by their code, their times and those that wait.
SIGTERM ends it when the requests that have come are answered, or after 10 seconds.

Tool. `search(query)` takes one query or a list, which goes in one request. A server that is away, or answers what is
no result, is asked again (`retries`) and then waited for, as `a2tgpo help tools` says of outages; what it refuses is
told to the policy. Equal queries are asked once in a run (`cache`). `max_passage_words` cuts each passage and
`max_result_tokens` the whole result.

Sizes. `PYTHONPATH=tests/helpers python tests/benches/search_load.py` builds an index of 1 million passages of 60
made-up words, and asks its server by 16 clients for 60 seconds. On 2 virtual cores, one of hardware, of an Intel Xeon
(2026-11-29):

    corpus 347 MiB    built in 110 s, 605 MiB resident at most
    index 449 MiB     140 MiB resident at most while serving
    3,318 requests    no error, p50 287 ms, p99 433 ms

So many queries read all of the index. What one has read stays in the system's cache, and leaves the server's memory
with it. An index larger than
memory has not been measured.
"""

from .tool import SearchTool


__all__ = ["SearchTool"]
