r"""Search for policies: a corpus of passages, its index on disk, a server, and the tool that queries it.

    a2tgpo serve-search --corpus wiki.jsonl            # builds the index if there is none, then serves
    a2tgpo serve-search --corpus wiki.jsonl --build    # builds it, and serves nothing
    a2tgpo serve-search --corpus wiki.jsonl --index dense --encoder intfloat/e5-base-v2 \
        --query-prefix "query: " --passage-prefix "passage: " --faiss hnsw

    from a2tgpo_trl.search import SearchTool

    search = SearchTool(url="http://localhost:8000", top_k=3)
    search = SearchTool(index="wiki.jsonl.bm25")       # in this process, without a server

Either line in my_tools.py makes a tool for a recipe: `tools: ["my_tools.py:search"]`. A second search tool needs
another name: SearchTool(..., name="search_news").

The server needs `pip install 'a2tgpo_trl[search]'`, and dense search needs `pip install 'a2tgpo_trl[dense]'`; the BM25
index and the tool need neither.

Corpus. A file with one JSON object per line, as in Search-R1 and FlashRAG, whose contents are the title in quotes, a
line break and the text: {"id": "0", "contents": "..."}; or {"id": "0", "title": "...", "text": "..."}. Without an id,
a passage's number, counted from 0, is its id. A folder of .txt and .md files works too: they are cut into passages of
100 words, titled with the name of their file. Passages are read from the file when they are found, so leave it where
it is. A line that is not a passage, has no text, repeats an id or is longer than 1 MiB is an error that names the
line.

Index. BM25 by bm25s (Lucene's form, k1 1.5, b 0.75, the most common English words left out, no stemming), in
CORPUS.bm25 or the folder that --index-folder names. Building needs memory for the vocabulary, one or two numbers per
passage and 20,000 passages at a time, and about two and a half times the size of the index on disk. The scores stay on
disk; a query maps what it reads into memory. Passages with equal scores come in the order of the corpus. A build that
is killed leaves no index, and the next one starts over; if two run at the same time, one waits for the other. An index
of another corpus, version or setting is refused; a copy of the corpus counts as the same corpus.

Dense search. `--encoder` is a folder or hub name that sentence-transformers can load. `--query-prefix` goes before
each query and `--passage-prefix` before each passage; if one is not given, the encoder's own prompt is used. Texts are
cut at `--max-tokens`, or at the encoder's own limit. Vectors are scaled to length 1 and compared by inner product:

    --faiss flat    with every passage: exact
    --faiss ivf     with the passages in the nearest sixteenth of the lists (at least 8), 4 sqrt(passages) lists in all
    --faiss hnsw    along a graph of neighbours, 32 per passage: fast, and larger than flat
    --faiss pq      with codes of one byte per 4 numbers, a sixteenth of flat; needs 256 passages or more

Passages are encoded once, 8,192 at a time. Their vectors, in 16 bits, stay in CORPUS.vectors-NAME beside the index;
NAME depends on the encoder, the passage prefix and the token limit. If a build is killed, the next one goes on after
the last complete shard. Another kind of index is made without encoding again; when all are built, you can remove the
folder. The index is in CORPUS.dense-flat (-ivf, -hnsw, -pq). It is built in memory, and mapped into memory when it is
searched. An index of another encoder (other weights or pooling, wherever they are stored), prefix, token limit or kind
is refused, like one of another corpus. With ivf, a query may find fewer passages than it asks for. `--device` sets
where the encoder runs; SearchTool(index=...) runs it on the CPU, because the policy has the accelerator.

`PYTHONPATH=tests/helpers python tests/benches/dense_recall.py` compares the kinds: 100,000 made-up passages of 24
words, three quarters of which come from one of 2,000 subjects; 1,000 queries, each six words of a passage; an encoder
with 384 dimensions (MiniLM). Recall is the share of flat's best three that a kind finds. With one thread
(OMP_NUM_THREADS=1), on 2 cores of an Intel Xeon that others also used (2026-11-29):

    kind   recall   index       built in   memory to build   a query
    flat   1.000    146.5 MiB      1.1 s   282 MiB           28.9 ms
    ivf    0.724    149.1 MiB     18.5 s   332 MiB            2.2 ms
    hnsw   0.968    172.4 MiB    256.4 s   326 MiB            2.7 ms
    pq     0.778      9.5 MiB     22.7 s   270 MiB            7.2 ms

The memory to build includes the index. Encoding the passages, once for all kinds, took 14 minutes.

Protocol. POST /retrieve takes and returns the same as Search-R1's retrieval server, so clients and servers of that
family are interchangeable:

    {"queries": ["who is the mayor of Velm"], "topk": 3, "return_scores": true}
    {"result": [[{"document": {"id": "0", "title": "Velm", "contents": "..."}, "score": 2.7}, ...]]}

Without return_scores the lists hold the documents themselves; topk is 3 by default. A query has 1 to 10,000
characters, a request up to 4,096 queries and 16 MiB, an answer up to 100,000 passages; topk is at most the number of
passages. A request beyond these limits gets a 4xx code and {"error": REASON}; 503 says that --most-waiting requests
are already waiting. GET /healthz says that the server is up; GET /metrics counts requests by code, their times and
those that wait. After SIGTERM the server ends when the requests it has received are answered, or after 10 seconds.

Tool. `search(query)` takes one query or a list, which goes in one request. If the server is down, or its answer is not
a result, it is asked again (`retries`) and then waited for, as described under outages in `a2tgpo help tools`. If it
refuses a request, the policy is told. Equal queries are asked once per run (`cache`). `max_passage_words` cuts each
passage and `max_result_tokens` the whole result.

Sizes. `PYTHONPATH=tests/helpers python tests/benches/search_load.py` builds an index of 1 million passages of 60
made-up words and queries its server from 16 clients for 60 seconds. On 2 virtual cores (one hardware core) of an Intel
Xeon (2026-11-29):

    corpus 347 MiB    built in 110 s, 605 MiB resident at most
    index 449 MiB     140 MiB resident at most while serving
    3,318 requests    no error, p50 287 ms, p99 433 ms

This many queries read the whole index. What a query has read stays in the system's cache and leaves the server's
memory when the query ends. An index larger than memory has not been measured.
"""

from .tool import SearchTool


__all__ = ["SearchTool"]
