package apiserver

import (
	"crypto/tls"
	"errors"
	"net/http"
	"sync/atomic"
)

// Witness passes requests on, and knows whether the last one was answered.
type Witness struct {
	Next     http.RoundTripper
	answered atomic.Bool
}

// Answered reports whether something answered the last request that has ended: with
// an error, or as one that is not trusted, too.
func (w *Witness) Answered() bool { return w.answered.Load() }

// RoundTrip implements http.RoundTripper.
func (w *Witness) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.Next.RoundTrip(req)
	if err == nil || req.Context().Err() == nil {
		w.answered.Store(err == nil || spoke(err))
	}
	return resp, err
}

// CloseIdleConnections is what http.Client looks for.
func (w *Witness) CloseIdleConnections() {
	if c, ok := w.Next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// spoke reports whether an error says that something answered, which is not what
// we trust.
func spoke(err error) bool {
	_, unproven := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, other := errors.AsType[tls.RecordHeaderError](err)
	return unproven || alert || other
}
