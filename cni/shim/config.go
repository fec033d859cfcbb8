package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

// newestSpec is what VERSION answers when it is not asked for another one.
const newestSpec = "1.1.0"

// versionWait is how long VERSION waits for a stdin that is optional.
const versionWait = 200 * time.Millisecond

// config is the little that the plugin itself needs of its configuration; the
// agent reads the rest.
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Socket     string          `json:"socket"`
	PrevResult json.RawMessage `json:"prevResult"`
	raw        json.RawMessage
}

func readConfig(r io.Reader) (*config, *wire.Error) {
	raw, err := io.ReadAll(io.LimitReader(r, wire.MaxConfig+1))
	if err != nil {
		return nil, wire.Errorf(wire.CodeIO, "the network configuration cannot be read from stdin: %v", err)
	}
	if len(raw) > wire.MaxConfig {
		return nil, wire.Errorf(wire.CodeIO, "the network configuration on stdin is longer than %d bytes", wire.MaxConfig)
	}
	return parseConfig(raw)
}

func parseConfig(raw []byte) (*config, *wire.Error) {
	c := config{raw: raw}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, wire.Errorf(wire.CodeDecode, "the network configuration on stdin is not valid JSON: %v", err)
	}
	if len(bytes.TrimLeft(raw, " \t\r\n")) == 0 || bytes.TrimLeft(raw, " \t\r\n")[0] != '{' {
		return nil, wire.Errorf(wire.CodeDecode, "the network configuration on stdin is not a JSON object")
	}
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) || len(c.Socket) > wire.MaxSocketPath {
		return nil, wire.Errorf(wire.CodeConfig, "the configuration's socket %.120q must be an absolute path of at most %d bytes",
			c.Socket, wire.MaxSocketPath)
	}
	return &c, nil
}

// versionInfo answers VERSION: the version that was asked with, and all that
// we speak. Whatever is wrong with stdin, there is an answer.
func versionInfo(stdin io.Reader) json.RawMessage {
	asked := make(chan string, 1)
	go func() {
		raw, err := io.ReadAll(io.LimitReader(stdin, wire.MaxConfig))
		var c struct {
			CNIVersion string `json:"cniVersion"`
		}
		asked <- func() string {
			if errors.Join(err, json.Unmarshal(raw, &c)) != nil {
				return ""
			}
			return c.CNIVersion
		}()
	}()
	timer := time.NewTimer(versionWait)
	defer timer.Stop()
	version := newestSpec
	select {
	case v := <-asked:
		if slices.Contains(wire.SpecVersions(), v) {
			version = v
		}
	case <-timer.C:
	}
	out, err := json.Marshal(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{version, wire.SpecVersions()})
	if err != nil { // strings always marshal
		return nil
	}
	return out
}
