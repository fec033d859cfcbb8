package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"runtime/metrics"
	"strconv"
	"time"
)

// profiles is where the socket answers as net/http/pprof does.
const profiles = "/debug/pprof/"

// debug serves profiles of the process. The socket is its user's alone, and there is
// no other way to them.
func debug(mux *http.ServeMux) {
	mux.HandleFunc("GET "+profiles, pprof.Index)
	mux.HandleFunc("GET "+profiles+"cmdline", pprof.Cmdline)
	mux.HandleFunc("GET "+profiles+"profile", pprof.Profile)
	mux.HandleFunc("GET "+profiles+"symbol", pprof.Symbol)
	mux.HandleFunc("POST "+profiles+"symbol", pprof.Symbol)
	mux.HandleFunc("GET "+profiles+"trace", pprof.Trace)
}

// ErrNoProfile means that the agent has no profile of that name.
var ErrNoProfile = errors.New("no such profile")

// maxRefusal bounds what is read of an answer that is no profile.
const maxRefusal = 1 << 10

// Profile copies a profile of the agent whose state directory this is to w: "profile"
// (of the CPU), "trace", "heap", "goroutine" and the others of net/http/pprof. The
// first two watch for a time; the others take it as the distance of two looks, 0 as
// what there is.
func Profile(ctx context.Context, w io.Writer, stateDir, name string, during time.Duration) error {
	query := url.Values{}
	if s := int(math.Ceil(during.Seconds())); s > 0 {
		query.Set("seconds", strconv.Itoa(s))
	}
	res, err := ask(ctx, stateDir, profiles+url.PathEscape(name)+"?"+query.Encode())
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		if _, err := io.Copy(w, res.Body); err != nil {
			return fmt.Errorf("read profile %q: %w", name, err)
		}
		return nil
	case http.StatusNotFound:
		return fmt.Errorf("profile %q: %w", name, ErrNoProfile)
	default:
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxRefusal))
		return fmt.Errorf("profile %q: the agent answered %s: %s", name, res.Status, bytes.TrimSpace(text))
	}
}

// Memory is what the process takes of the machine's.
type Memory struct {
	Resident    uint64 `json:"residentBytes"` // 0: not known
	Heap        uint64 `json:"heapBytes"`     // in use
	Collections uint64 `json:"garbageCollections"`
}

// ReadMemory reads it of this process.
func ReadMemory() Memory {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(samples)
	m := Memory{Resident: resident()}
	if v := samples[0].Value; v.Kind() == metrics.KindUint64 {
		m.Heap = v.Uint64()
	}
	if v := samples[1].Value; v.Kind() == metrics.KindUint64 {
		m.Collections = v.Uint64()
	}
	return m
}

// resident reads how much of the machine's memory the process has.
func resident() uint64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(data)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
