//! Why a client could not be made; what goes wrong later stands in the answers.

/// The options make no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of endpoints is empty.
    #[error("no metadata endpoint is given: list at least one, such as \"http://169.254.169.254\"")]
    NoEndpoint,
    /// One endpoint is not the address of a metadata service.
    #[error(
        "the metadata endpoint \"{endpoint}\" {problem}: write it like \
         \"http://169.254.169.254\" or \"http://[fd00:ec2::254]\""
    )]
    Endpoint {
        /// The endpoint as it was given.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}
