#!/usr/bin/env bash
# The Java client of Apache Kafka. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] java.sh [--install]
source "$(dirname "$0")/../lib.sh"
need javac "apt-get install default-jdk-headless (17 or newer)"
maven_jars "$here/java" java-jars
compile() { mkdir -p "$cache/java-classes" && javac -d "$cache/java-classes" -cp "$cache/java-jars/*" "$here/java/Steps.java"; }
install_once java-classes "$here/java/pom.xml" "$here/java/Steps.java" -- compile
only_installing "$@"
exec java -XX:TieredStopAtLevel=1 -cp "$cache/java-classes:$cache/java-jars/*" Steps
