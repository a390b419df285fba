"""folders of runs -> one page for a browser, a file or live: curves, turns, and each rollout that was recorded.

    a2tgpo train quickstart --record_every 5
    a2tgpo train quickstart --record_every 5 --credit grpo --output_dir outputs/grpo
    a2tgpo view outputs/quickstart outputs/grpo -o runs.html
    a2tgpo view outputs/quickstart outputs/grpo --serve

The page is one file. It needs no server and no network: a rule in it forbids the browser to load anything. It shows
the rollouts that `record_every` recorded. Metrics come from the run's log, which a run writes with each checkpoint and
at its end, and for steps after it from the records. A run that is still going, or was killed, is shown as far as it
got.

    Steps       reward, score with those of held-out questions, entropy, clip fraction, gain; any other metric logged
    Turns       the same by the position of a turn in its rollout: what turns gain, what they are credited with, and
                how they fail. The first eight are shown separately. Over all steps, or over a third of them.
    Paper       figures 4 and 5 of A2TGPO's paper, made from these runs: means of raw gains, of z-scores and of credit
                by turn; the smallest, the mean and the largest advantage of a turn over steps
    Groups      a row for each prompt of a recorded batch. Click a heading to sort. Filters choose groups with solved
                and failed rollouts, failed turns, a spread of gains, and words in any text of the rollouts.
    A group     its rollouts side by side, a row for each turn: blue for what is done more often from now on, red for
                less. Above them, how probable the right answer was before the first turn and after each turn.
                `text` shows what a turn wrote as tokens, coloured by their turn's advantage or by their importance
                ratio as of the last update of their batch (`a2tgpo help records`); tokens that the clip range stopped
                are underlined. Point at a token, or use the arrow keys, to see below what is known of it.

With several runs, all curves are in one chart, in the colours of the runs. `beside` chooses another run: the table
then shows the reward that the same prompt had there, and the difference, and a group that you open has the other run's
rollouts of its prompt beside its own, on the same scale. If a prompt has several groups, the page takes the one of the
nearest step and links to the others. Runs with the same data and seed have the same prompts.

With the keyboard, Tab moves from one item to the next, Enter sorts and opens, and the arrow keys move up and down in
the table. `gain spread` is the largest gain of a turn in the group minus the smallest; `failed turns` are turns that
did not end as `ok` (`a2tgpo help failures`). What was written and read is shown as text: characters that would move or
hide something appear as their codes, and each text is cut at 10,000 characters. The word filter searches these. The
page opens immediately with 10,000 rollouts, because a browser reads only those that are open. Tested in Chromium 150;
the browser features it needs are in Chrome 117, Firefox 113 and Safari 16.4.

While a run goes on, `--serve` shows the same page live, at http://127.0.0.1:8500 (`--port` names another port, 0 takes
a free one), until Ctrl-C. Every two seconds the page asks for what is new, as long as it is in view; what you have
opened, sorted, filtered or zoomed stays so. A run whose folder does not exist yet is waited for. If a run starts over,
the page drops what it had read of it, and says so. A line or a log that is still being written is read when it is
complete. The server keeps the numbers and the rows of the table, and reads rollouts from their files when asked.

If the runs are on another machine, leave the server there on its own loopback address and forward its port by ssh,
from the machine with the browser:

    ssh -L 8500:localhost:8500 MACHINE        # in it: a2tgpo view outputs/quickstart --serve
    http://localhost:8500                     # in the browser

Anyone who can log in to that machine can read the page there as well. `--host` with any other address asks for a
token, which is part of the printed address and is new at each start. The traffic is then not encrypted, nor is the
token: use it only on networks that you trust. A browser keeps the token in a cookie, and sends it to every port of
that host. The server refuses requests under a name that only pretends to be this machine (DNS rebinding), and requests
from pages of other sites.

    run.py       a run's folder -> its records, log and held-out scores
    curves.py    log and records -> curves over steps, and sums by turn
    groups.py    records -> rows of the table, and rollouts as they are shown
    html.py      all of this and the files in page/ -> the page
    journal.py   what is known -> what has changed since
    watch.py     a folder that is written to -> what is new in it
    server.py    the live page over HTTP, and who may read it
    page/        what runs in the browser; in vendor/ uPlot (charts) and Tabulator (the table), as released
"""
