package health

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/netctl/netctl/internal/model"
)

// answer is what a load balancer reads, spelt as kube-proxy spells it (HC-3).
type answer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// serveService answers for one service's port.
func (s *Server) serveService(w http.ResponseWriter, svc model.Name, local int) {
	_, healthy := s.state.verdict(false)
	var a answer
	a.Service.Namespace, a.Service.Name = svc.Namespace, svc.Name
	a.LocalEndpoints, a.ServiceProxyHealthy = local, healthy
	body, err := json.MarshalIndent(a, "", "\t")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
	if local == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(body, '\n')) // the client may be gone
}

// healthz is the handler of the proxy's own health.
func (s *Server) healthz() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, node bool, count *codes) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			v, ok := s.state.verdict(node)
			code := http.StatusOK
			if !ok {
				code = http.StatusServiceUnavailable
			}
			count.add(code)
			h := w.Header()
			h.Set("Content-Type", "application/json")
			h.Set("X-Content-Type-Options", "nosniff")
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(v) // the client may be gone
		})
	}
	handle("/healthz", true, &s.counts.healthz)
	handle("/livez", false, &s.counts.livez)
	return mux
}

// metrics is the handler of what is for this machine's own eyes.
func (s *Server) metrics() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, s.cfg.Mode) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		internal, external := 0, 0
		if s.cfg.NoLocal != nil {
			internal, external = s.cfg.NoLocal()
		}
		s.counts.write(w, internal, external)
		if s.cfg.More != nil {
			s.cfg.More(w)
		}
	})
	return mux
}
