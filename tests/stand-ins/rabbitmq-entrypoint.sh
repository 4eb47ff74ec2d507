#!/bin/sh
# As root, the server and its tools become the user rabbitmq, who owns the data.
set -eu
case "$1" in
    rabbitmq*)
        if [ "$(id -u)" = 0 ]; then
            [ "$1" != rabbitmq-server ] || find /var/lib/rabbitmq ! -user rabbitmq -exec chown rabbitmq '{}' +
            exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups "$@"
        fi
        ;;
esac
exec "$@"
