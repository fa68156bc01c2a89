#!/bin/sh
# Makes of a configuration in deploy/nginx one without certificates, for docker-compose.yml: plain.sh PORT <in >out
sed -e "s/listen 443 ssl;/listen $1;/" -e '/^ *ssl_/d'
