# The command line as an image: for the CPU, or by --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 for CUDA.
# docs/container.md says how to use it.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
ARG EXTRAS=train,dicom
RUN python -m venv /opt/dinounet
ENV PATH=/opt/dinounet/bin:${PATH}
# before our own files, so that a change of ours doesn't bring it anew
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch==${TORCH}" "torchvision==${TORCHVISION}"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:${PYTHON}
COPY --from=build /opt/dinounet /opt/dinounet
# any user may run it, also one without a name (which PyTorch's compiler asks for) or a home: what is written lies in /cache, /tmp and
# the mounted folders
RUN useradd --uid 1000 --create-home dinounet && mkdir -m 1777 /cache
ENV PATH=/opt/dinounet/bin:${PATH} \
    HOME=/tmp \
    USER=dinounet \
    HF_HOME=/cache/huggingface
USER 1000:1000
WORKDIR /data
HEALTHCHECK --interval=5m --timeout=30s CMD ["dinounet", "--version"]
ENTRYPOINT ["dinounet"]
CMD ["--help"]
