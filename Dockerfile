# Serves an exported model without torch. Repair takes the trained model, and so `pip install '.[serve]'` in place of the steps below.
#
#     docker build -t diffad .
#     docker run -p 8000:8000 -v ./exported:/model:ro -e DIFFAD_TOKEN diffad
FROM python:3.12-slim
WORKDIR /diffad
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY pipelines pipelines
COPY training training
RUN pip install --no-cache-dir fastapi filelock matplotlib numpy onnxruntime openvino pillow prometheus-client pydantic \
    python-multipart pyyaml scipy starlette swagger-ui-bundle typer uvicorn
RUN pip install --no-cache-dir --no-deps .
USER nobody
ENV MPLCONFIGDIR=/tmp
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["diffad", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
