"""Shows sites and tables as HTML: a page for browsers, and fragments for notebooks.

In come the neutral records of `content`; out comes text. A page is one file that needs no network: `page.html`, `page.css` and
`page.js` beside this file are put into it. Nothing here knows what a plan or a report is.
"""
