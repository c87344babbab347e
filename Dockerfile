# Serves an exported model without torch. Repair takes the trained model, and so `pip install '.[serve]'` in place of the steps below.
#
#     docker build -t diffad .
#     docker run -p 8000:8000 -v ./exported:/model:ro -e DIFFAD_TOKEN diffad
FROM python:3.12-slim
WORKDIR /diffad
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY pipelines pipelines
COPY training training
# With the bounds of setup.cfg.
RUN pip install --no-cache-dir 'fastapi>=0.133' 'filelock>=3.16' 'matplotlib>=3.9' 'numpy>=2.0' 'onnxruntime>=1.20' \
    'openvino>=2025.2' 'pillow>=10.4' 'prometheus-client>=0.21' 'pydantic>=2.11.10' 'python-multipart>=0.0.18' 'pyyaml>=6.0.1' \
    'safetensors>=0.4.5' 'scipy>=1.13' 'starlette>=1.0.1' 'swagger-ui-bundle>=1.1' 'typer>=0.16' 'uvicorn>=0.32'
RUN pip install --no-cache-dir --no-deps .
USER nobody
ENV MPLCONFIGDIR=/tmp
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["diffad", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
