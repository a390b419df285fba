"""folders of runs -> one page for a browser, a file or live: curves, turns, and each rollout that was recorded.

    a2tgpo train quickstart --record_every 5
    a2tgpo train quickstart --record_every 5 --credit grpo --output_dir outputs/grpo
    a2tgpo view outputs/quickstart outputs/grpo -o runs.html
    a2tgpo view outputs/quickstart outputs/grpo --serve

The page is one file, which needs no server and no network, and asks for none: a rule in it forbids the browser to load
anything. What it shows of rollouts is what `record_every` has recorded; metrics are the run's log, which a run writes
with each checkpoint and at its end, and after it what the records say. A run that goes on, or was killed, is shown as
far as it came.

    Steps       reward, score with those of held-out questions, entropy, clip fraction, gain; any other metric logged
    Turns       the same by the place of a turn in its rollout: what turns gain, are credited with, and how they fail.
                The first eight are told apart. Of all steps, or of a third of them.
    Paper       figures 4 and 5 of A2TGPO's paper, made of these runs: means of raw gains, of z-scores and of credit by
                turn; the smallest, the mean and the largest advantage of a turn over steps
    Groups      a line for each prompt of a recorded batch. A click on a heading sorts; filters choose what was solved
                and failed in one group, failed turns, a spread of gains, and words in any text of its rollouts.
    A group     its rollouts side by side, a row for each turn: blue for what is done more often from now on, red for
                less. Above, how probable the right answer was before the first turn and after each.
                `text` shows what a turn wrote as tokens, coloured by their turn's advantage or by their importance
                ratio as of the last update of their batch (`a2tgpo help records`); those that the clip range
                stopped are underlined. What is known of one stands below, under the mouse and by the arrow keys.

Of several runs all curves are in one chart, in the colours of the runs. `beside` chooses another run: the table then
says what reward the same prompt had there, and the difference, and a group that is opened has the other run's rollouts
of its prompt at its side, on the same scale. Of groups of one prompt, that of the nearest step is taken; there are
links to the others. Runs with the same data and seed have their prompts in common.

By keyboard: Tab goes from one thing to the next, Enter sorts and opens, the arrow keys go up and down in the table.
`gain spread` is the largest gain of a turn in the group less the smallest; `failed turns` are those that did not end
as `ok` (`a2tgpo help failures`). What was written and read stands there as text, characters that would move or hide
something by their codes, and 10,000 characters of each text; words are searched in these. The page opens at once with
10,000 rollouts, for a browser reads of them what is open. Tried in Chromium 150; what it needs of a browser is in
Chrome 117, Firefox 113 and Safari 16.4.

While a run goes on, `--serve` shows the same page live, at http://127.0.0.1:8500 (`--port` names another port, 0 takes
a free one), until Ctrl-C. Every two seconds the page asks for what is new, as long as it is in view; what is open,
sorted, filtered or zoomed stays so. A run whose folder is not there yet is waited for; of one that is begun anew what
was read is dropped, and the page says so. A line or a log that is being written is read when it is whole. The server
keeps the numbers and the lines of the table, and reads rollouts from their files when they are asked for.

On another machine, leave the server on its own loopback address and have its port brought by ssh, from where the
browser is:

    ssh -L 8500:localhost:8500 MACHINE        # in it: a2tgpo view outputs/quickstart --serve
    http://localhost:8500                     # in the browser

Whoever can log in to that machine can read it there as well. `--host` with any other address asks for a token, which
is part of the address that is printed, and is new at each start. What travels then is not encrypted, the token
neither: for networks that you trust. A browser keeps the token in a cookie, and sends it to every port of that host.
A name that only pretends to be this machine is refused (DNS rebinding), and what pages of other sites ask for.

    run.py       a run's folder -> its records, log and held-out scores
    curves.py    log and records -> curves over steps, and sums by turn
    groups.py    records -> lines of the table, and rollouts as they are shown
    html.py      all of this and the files in page/ -> the page
    journal.py   what is known -> what of it was changed since
    watch.py     a folder that is written to -> what is new in it
    server.py    the live page over HTTP, and who may read it
    page/        what runs in the browser; in vendor/ uPlot, which draws, and Tabulator, the table, as released
"""
