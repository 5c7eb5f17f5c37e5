#!/bin/sh
# Gives a program its secrets: a variable NAME_FILE that names a file below /run/secrets becomes NAME with the file's content.
set -eu
for name in $(env | sed -n 's#^\([A-Z][A-Z0-9_]*\)_FILE=/run/secrets/.*#\1#p'); do
    eval "file=\${${name}_FILE}"
    if [ ! -r "$file" ]; then
        echo "entrypoint: ${name}_FILE=$file can not be read by user $(id -u); make it with infra/make-secrets.sh" >&2
        exit 2
    fi
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
