"""Where parameters come from, and where they go: runs of ours, files of Hugging Face and OpenAI."""
