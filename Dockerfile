# The page in a container: on the CPU as it is, on GPUs where the container is given some. README.md, "Host it".
FROM python:3.11-slim-bookworm

# Torch from the usual place brings CUDA along. For CPUs alone: --build-arg PIP_EXTRA_INDEX_URL=<where CPU wheels are>
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt requirements-mcp.txt /tmp/
RUN pip install --no-cache-dir --disable-pip-version-check --requirement /tmp/requirements-mcp.txt

# User 1000 is who Docker Spaces run as. What must outlive the container is under /data: pictures, journal, weights.
RUN useradd --uid 1000 --create-home user && install --directory --owner=user --mode=700 /data
ENV DISTRI_DATA=/data/outputs \
    HF_HOME=/data/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /home/user/app
COPY app.py LICENSE ./
COPY distri_engine/ distri_engine/
COPY launcher/ launcher/
COPY assets/demo_model/ assets/demo_model/
COPY assets/page/ assets/page/
USER user
VOLUME /data
EXPOSE 7860

# Healthy: a picture could be made. Until the first time, weights may be on their way.
HEALTHCHECK --interval=60s --start-period=1h --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]

# Options follow the image's name: docker run ... distrifusion --ranks 4 --mcp
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0"]
