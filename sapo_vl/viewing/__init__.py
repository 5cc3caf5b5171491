"""Run and evaluation folders as a page to look at: one HTML file, or a server on loopback.

In: folders that runs and evaluations wrote, as files alone; nothing is loaded, no model, no torch. Out: the page.
May import `strict`, the token files of `record`, the pictures and folders of `data`.
"""
