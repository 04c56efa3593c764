package opa

import (
	"errors"
	"net/http"
)

// offline is a network that is not there, and silent one that never answers.
func offline(*http.Transport) http.RoundTripper {
	return roundTripper(func(*http.Request) error { return errors.New("not asked again") })
}

func silent(*http.Transport) http.RoundTripper {
	return roundTripper(func(request *http.Request) error {
		<-request.Context().Done()
		return request.Context().Err()
	})
}

// roundTripper fails.
type roundTripper func(*http.Request) error

// RoundTrip gives no response.
func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	return nil, r(request)
}
