# Images of docker-compose.yml from Debian's packages, for machines that reach no image registry.
FROM python:3.12.12-slim-trixie AS redis
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server \
    && install --directory --owner redis /data
WORKDIR /data
VOLUME /data
# The official image is compiled without protected mode, which refuses other containers.
ENTRYPOINT ["sh", "-c", "exec \"$@\" --protected-mode no", "--"]

FROM python:3.12.12-slim-trixie AS prometheus
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget \
    && install --directory --owner nobody /prometheus
ENTRYPOINT ["prometheus"]

FROM python:3.12.12-slim-trixie AS alertmanager
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus-alertmanager wget \
    && install --directory --owner nobody /alertmanager
ENTRYPOINT ["prometheus-alertmanager"]
