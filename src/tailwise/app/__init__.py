"""The web app over a workspace: pages, charts, jobs."""
