"""What the page shows, as pure functions from state to small dictionaries. The wiring to Gradio is app.py's business,
the drawing page.js's; user text leaves here as data and never as markup.
"""
