#!/bin/sh
# Makes the secrets of compose.yaml and of kubernetes/ in a folder: random ones, each once. Those that are there stay.
# infra/make-secrets.sh infra/secrets
set -eu
folder=${1:?name the folder, such as infra/secrets}
umask 022
mkdir -p "$folder"
# The folder keeps others out; the files are readable, since containers read them as a user of their own.
chmod 700 "$folder"

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
make() {
    if [ ! -s "$folder/$1" ]; then
        printf '%s' "$2" > "$folder/$1.new"
        mv "$folder/$1.new" "$folder/$1"
    fi
}
make prefect_db_password "$(random 24)"
make mlflow_db_password "$(random 24)"
make prefect_login "headstart:$(random 16)"
make mlflow_user "headstart"
make mlflow_password "$(random 16)"
make mlflow_flask_key "$(random 32)"
make mlflow_auth.ini "[mlflow]
default_permission = READ
database_uri = postgresql+psycopg2://mlflow@mlflow-db:5432/mlflow
admin_username = $(cat "$folder/mlflow_user")
admin_password = $(cat "$folder/mlflow_password")
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"
make ray_token "$(random 32)"
make s3_access_key "$(random 10)"
make s3_secret_key "$(random 20)"
make s3_identities.json "{\"identities\": [{\"name\": \"headstart\", \"actions\": [\"Admin\", \"Read\", \"List\", \"Tagging\", \"Write\"],
  \"credentials\": [{\"accessKey\": \"$(cat "$folder/s3_access_key")\", \"secretKey\": \"$(cat "$folder/s3_secret_key")\"}]}]}
"
