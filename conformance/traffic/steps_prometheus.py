"""Debian's Prometheus reads the proxy's metrics, and promtool has nothing against them."""

import json
import socket
import subprocess

from common import WORK_DIR, Proxy, certificates, eventually, run, upstream, version
from checks import begin, check, end

begin("prometheus", version("prometheus", "--version"))
at, to = certificates(), upstream()
with Proxy("--to", to, "--tcp", f"127.0.0.1:0={to}", "--tls-cert", at("server.pem"), "--tls-key", at("server.key")) as proxy:
    for _ in range(5):
        run("curl", "-s", "--cacert", at("ca.pem"), f"https://{proxy.address}/")
        run("curl", "-s", f"http://{proxy.tcp[0]}/")
    page = proxy.metrics()
    judged = run("promtool", "check", "metrics", input=page.encode())
    wrong = [line for line in (judged.out + judged.err).splitlines() if "no help text" not in line]
    check("promtool finds nothing but missing help texts", [], wrong)
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    number = port.getsockname()[1]
    port.close()
    (WORK_DIR / "prometheus.yml").write_text(
        f"scrape_configs:\n  - job_name: proxy\n    scrape_interval: 1s\n    static_configs:\n      - targets: ['{proxy.admin}']\n"
    )
    command = ["prometheus", f"--config.file={WORK_DIR}/prometheus.yml", f"--storage.tsdb.path={WORK_DIR}/tsdb", f"--web.listen-address=127.0.0.1:{number}", "--log.level=error"]
    scraping = subprocess.Popen(command)
    try:

        def value(query):
            said = run("curl", "-s", "--get", "--data-urlencode", f"query={query}", f"http://127.0.0.1:{number}/api/v1/query")
            try:
                return [float(one["value"][1]) for one in json.loads(said.out)["data"]["result"]]
            except (ValueError, KeyError):
                return []

        check("it is scraped", [1.0], eventually(lambda: value('up{job="proxy"} == 1')))
        check("requests are counted", [5.0], eventually(lambda: value('sum(buttress_traffic_requests_total{status="2xx"}) == 5')))
        check("a histogram has quantiles", True, bool(eventually(lambda: value("histogram_quantile(0.9, sum by (le) (buttress_traffic_request_seconds_bucket)) > 0"))))
        check("handshakes are counted", [5.0], eventually(lambda: value('buttress_traffic_handshakes_total{outcome="done"} == 5')))
        check("a certificate says until when it is valid", True, bool(eventually(lambda: value("buttress_traffic_certificate_expiry_seconds - time() > 86400"))))
        check("bytes over TCP are counted", True, bool(eventually(lambda: value('buttress_traffic_tcp_bytes_total{direction="sent"} > 0'))))
    finally:
        scraping.terminate()
        scraping.wait(60)
end()
