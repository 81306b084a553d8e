"""What is indexed and where: the catalogue of documents, the vector store, generations of both."""
