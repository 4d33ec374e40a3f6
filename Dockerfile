# raykd with everything a run needs; also the image of a Ray cluster's nodes (`ray` is on PATH).
#   docker build -t raykd .                                          CPU
#   docker build -t raykd:cuda --build-arg LOCK=requirements-vllm.lock .   NVIDIA GPUs
FROM python:3.11-slim

ARG LOCK=requirements-cpu.lock
# For mirrors, if pip needs any here
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL

# g++ and libnuma are vLLM's; rsync, wget and procps are what Ray's launcher and KubeRay's probes call
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 make procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home raykd \
    && install -d -o raykd /opt/raykd

USER raykd
WORKDIR /opt/raykd
COPY --chown=raykd . .
RUN make setup LOCK=${LOCK} && rm -rf ~/.cache
ENV PATH=/opt/raykd/.venv/bin:$PATH
CMD ["raykd", "--help"]
