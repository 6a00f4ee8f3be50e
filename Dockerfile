# For GPU machines: docker build -t vla_rl . ; docker run --rm --gpus all vla_rl vla_rl.fit conf=pcm_object
# The driver comes from the host (NVIDIA container toolkit), the CUDA libraries with torch's wheel.
FROM python:3.11-slim-bookworm

# graphics: rendering on the GPU; without it EGL falls back to Mesa on the CPU
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1

# Where libEGL looks for NVIDIA's driver; it skips the entry where the host brings none.
RUN mkdir -p /usr/share/glvnd/egl_vendor.d \
    && echo '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}' \
    > /usr/share/glvnd/egl_vendor.d/10_nvidia.json

# make, for the set-up that every machine uses; it installs the software GL itself
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# what decides the environment, so that a change of the code does not install it anew
COPY Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY tools/setup.sh tools/
COPY vla_rl/__init__.py vla_rl/
COPY callbacks/__init__.py callbacks/
COPY conf/base.yaml conf/
RUN make setup

COPY conf conf
COPY vla_rl vla_rl
COPY callbacks callbacks
COPY tools tools

# docker run IMAGE MODULE [key=value ...], as after `python -m`
ENTRYPOINT [".venv/bin/python", "-m"]
CMD ["vla_rl.fit", "--help"]
