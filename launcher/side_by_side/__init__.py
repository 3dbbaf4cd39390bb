"""The page that shows folders of pictures side by side: what is shown, as HTML, and its style and script."""
