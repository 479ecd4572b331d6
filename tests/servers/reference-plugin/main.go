// Command reference-plugin is a KMS v2 plugin as an author in Go would begin it: the server of k8s.io/kms/pkg/service,
// AES-256-GCM under one key made at the start, no cache, no metrics, no KEK. scripts/bench measures against it.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"k8s.io/kms/pkg/service"
)

const annotation = "reference-plugin.kube-envelope.test"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reference-plugin SOCKET")
		os.Exit(2)
	}
	plugin, err := newPlugin()
	if err == nil {
		err = service.NewGRPCService(os.Args[1], 3*time.Second, plugin).ListenAndServe()
	}
	fmt.Fprintln(os.Stderr, "reference-plugin:", err)
	os.Exit(1)
}

type plugin struct {
	aead  cipher.AEAD
	keyID string
}

func newPlugin() (*plugin, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(append([]byte("key id"), key...))
	return &plugin{aead: aead, keyID: hex.EncodeToString(id[:16])}, nil
}

func (p *plugin) Status(context.Context) (*service.StatusResponse, error) {
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: p.keyID}, nil
}

func (p *plugin) Encrypt(_ context.Context, _ string, plaintext []byte) (*service.EncryptResponse, error) {
	nonce := make([]byte, p.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return &service.EncryptResponse{
		Ciphertext:  p.aead.Seal(nonce, nonce, plaintext, []byte(p.keyID)),
		KeyID:       p.keyID,
		Annotations: map[string][]byte{annotation: []byte("1")},
	}, nil
}

func (p *plugin) Decrypt(_ context.Context, _ string, request *service.DecryptRequest) ([]byte, error) {
	if request.KeyID != p.keyID || string(request.Annotations[annotation]) != "1" {
		return nil, fmt.Errorf("key_id %q or its annotation is not this plugin's", request.KeyID)
	}
	n := p.aead.NonceSize()
	if len(request.Ciphertext) < n {
		return nil, fmt.Errorf("a ciphertext of %d bytes holds no nonce", len(request.Ciphertext))
	}
	return p.aead.Open(nil, request.Ciphertext[:n], request.Ciphertext[n:], []byte(p.keyID))
}
